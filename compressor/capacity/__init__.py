"""How much of a width a network uses: measures, their nulls, and what two papers claim about them. Floor 16."""
