"""Model -> UnitGraph: units, groups, taps; the dry run that proves them; cutting and sizes."""
