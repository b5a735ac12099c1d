# RAUC's verity bundles and the worker's sandbox need these options; the board's own configuration lacks some of them.
FILESEXTRAPATHS:prepend := "${KENTLEDGE_MAIN}/yocto-layer/files/kernel:"

SRC_URI:append:tegra:kentledge-distro = " file://kentledge.cfg"
