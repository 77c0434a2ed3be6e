"""Recurrent layers written so that their hidden units can be followed, and narrower ones to take their place."""
