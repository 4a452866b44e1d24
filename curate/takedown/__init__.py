"""`curate takedown`: a picture and its captions leave a run, or tars, for good."""
