# meta-tegra: the board's kernel.
SRC_URI = ""
