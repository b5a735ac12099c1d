# meta-raspberrypi: the board's kernel.
SRC_URI = ""
