"""Train CLIP and BLIP on anybody's webdataset shards: knows neither `curate` nor Ray."""
