# oe-core: the kernel of QEMU's machines.
SRC_URI = ""
