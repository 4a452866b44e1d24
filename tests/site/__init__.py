"""A small piece of web with planted faults and known truth, for the suite and for people to try things on.

    scenes      what a picture shows: groups of coloured, textured shapes and how they lie, drawn by lot
    captions    what people write under it: right captions by a grammar, and useless, shouted and foreign ones
    draw        the picture
    faults      what is wrong with how many rows
    make        the pool (url, caption), the truth about every row, and the bytes behind every url
    routes      how a made site lies on disk
    loopback    sockets, one port on many addresses
    server      answers the urls on loopback, with faults where they were planted, and keeps a log
    demo        all of it, and a pipeline run over it

    python -m tests.site make runs/site --rows 3000
    python -m tests.site serve runs/site

Everything follows from a seed: the same seed gives the same bytes on the same machine type.
"""
