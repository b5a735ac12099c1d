# meta-tegra: an image too, with types of its own.
inherit core-image
IMAGE_FSTYPES = "${INITRAMFS_FSTYPES}"
