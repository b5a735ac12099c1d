# The A/B choice in place of the board's own script.
FILESEXTRAPATHS:prepend:kentledge-distro := "${THISDIR}/files:"
