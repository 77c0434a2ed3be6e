"""What a run costs before it is started: rates measured here, times what each stage has to do."""
