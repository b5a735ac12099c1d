SUMMARY = "Places of a read-only root"
DESCRIPTION = "The boot partition, and where the name service's file is. /data and /var are mounted before systemd (kentledge-preinit)."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

inherit allarch systemd

SRC_URI = "file://boot.mount file://80-kentledge.network"
S = "${UNPACKDIR}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${S}/boot.mount ${D}${systemd_system_unitdir}/boot.mount
    sed -i 's/@LABEL_BOOT@/${KENTLEDGE_LABEL_BOOT}/' ${D}${systemd_system_unitdir}/boot.mount
    install -D -m 0644 ${S}/80-kentledge.network ${D}${nonarch_libdir}/systemd/network/80-kentledge.network
}

SYSTEMD_SERVICE:${PN} = "boot.mount"
FILES:${PN} += "${nonarch_libdir}/systemd"
