"""The encoders: points (Point-BERT), images and text (open_clip), and the student that joins them."""
