# meta-rauc: what makes bundles. Here this machine's own.
SUMMARY = "This machine's RAUC"
LICENSE = "LGPL-2.1-or-later"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

INHIBIT_DEFAULT_DEPS = "1"

inherit native

S = "${UNPACKDIR}"

do_install() {
    install -d ${D}${bindir}
    ln -s /usr/bin/rauc ${D}${bindir}/rauc
}
