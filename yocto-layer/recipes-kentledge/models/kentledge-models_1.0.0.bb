SUMMARY = "The factory model's bundle"
DESCRIPTION = "A signed bundle, made outside with `kentledge model prepare`, minisign and `kentledge model pack`: its key is not here."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

inherit allarch

# Bundles that go into the image, from the folder KENTLEDGE_BUNDLES.
KENTLEDGE_BUNDLES ?= ""
do_install[file-checksums] += "${@' '.join('%s:True' % path for path in kentledge_bundles(d))}"

def kentledge_bundles(d):
    import glob
    folder = d.getVar("KENTLEDGE_BUNDLES")
    return sorted(glob.glob(folder + "/*.kmb")) if folder else []

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${nonarch_libdir}/kentledge/models
    for bundle in ${@' '.join(kentledge_bundles(d))}; do
        install -m 0644 $bundle ${D}${nonarch_libdir}/kentledge/models/
    done
}

FILES:${PN} = "${nonarch_libdir}/kentledge/models"
ALLOW_EMPTY:${PN} = "1"
