SUMMARY = "Kentledge: a signed bundle of the system"
DESCRIPTION = "What os.install brings: one slot, in verity format."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "images"
LICENSE = "Apache-2.0 | MIT"

inherit bundle

RAUC_BUNDLE_COMPATIBLE = "${KENTLEDGE_COMPATIBLE}"
RAUC_BUNDLE_VERSION = "${DISTRO_VERSION}"
# What runs models in this system: a device whose model needs another provider refuses the bundle.
KENTLEDGE_PROVIDERS_OF_BOARD = "cpu"
KENTLEDGE_PROVIDERS_OF_BOARD:tegra = "tensorrt cuda cpu"
KENTLEDGE_PROVIDERS ?= "${KENTLEDGE_PROVIDERS_OF_BOARD}"
RAUC_BUNDLE_DESCRIPTION = "Kentledge ${DISTRO_VERSION} for ${MACHINE}; providers: ${KENTLEDGE_PROVIDERS}"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "kentledge-image"
RAUC_SLOT_rootfs[fstype] = "ext4"

# Made outside (image/keys/make): a build without them stops here.
RAUC_KEY_FILE = "${KENTLEDGE_KEYS}/rauc.key"
RAUC_CERT_FILE = "${KENTLEDGE_KEYS}/rauc.pem"
# Other keys in files of the same names make the bundle again; the class leaves their content out (`:False`).
do_bundle[file-checksums] += "${RAUC_CERT_FILE}:True ${RAUC_KEY_FILE}:True"

python () {
    keys = d.getVar("KENTLEDGE_KEYS")
    if not keys:
        d.setVar("RAUC_KEY_FILE", "")
        raise bb.parse.SkipRecipe("KENTLEDGE_KEYS names no folder of keys (image/keys/make)")
}
