# oe-core: the board's boot loader.
