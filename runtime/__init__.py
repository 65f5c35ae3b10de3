"""The light, torch-free runtime of crossmost."""
