"""The trainer: image-text shards in, a model that open_clip loads out.

It knows shards and tables of pictures with captions, and nothing of how they came to be: it never imports `curate` or `ray`,
and runs where there is only torch, open_clip and Pillow.
"""
