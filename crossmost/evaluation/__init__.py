"""How good the predictions are, and the one-file report that says so. Labels end here."""
