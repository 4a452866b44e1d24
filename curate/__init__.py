"""Turn the raw web into an image-text dataset: measure into columns, decide with `keep`, build shards."""
