"""Reading clouds, meshes and whole data sets, and making them ready for the encoder."""
