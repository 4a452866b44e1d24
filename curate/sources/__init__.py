"""What a user hands in, files of any format, and the rows of a run that become of it."""
