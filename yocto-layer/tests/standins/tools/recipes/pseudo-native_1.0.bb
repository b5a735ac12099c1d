# oe-core: what lets a build own its files as root. Here this machine's own.
SUMMARY = "This machine's pseudo"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

INHIBIT_DEFAULT_DEPS = "1"
PROVIDES += "virtual/fakeroot-native"

inherit native

S = "${UNPACKDIR}"

do_install() {
    install -d ${D}${bindir}
    ln -s /usr/bin/pseudo ${D}${bindir}/pseudo
}
