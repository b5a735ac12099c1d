# The environment twice, in a partition of its own: a power cut while one copy is written leaves the other.
FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

SRC_URI:append:rpi:kentledge-distro = " file://kentledge.cfg file://kentledge-watchdog.cfg"
