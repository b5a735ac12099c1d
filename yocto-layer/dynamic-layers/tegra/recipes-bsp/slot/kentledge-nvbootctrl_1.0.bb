SUMMARY = "RAUC's way to Jetson's boot loader"
DESCRIPTION = "A custom backend that asks nvbootctrl, and refuses where the board's redundancy was never armed."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

SRC_URI = "file://nvbootctrl-backend"
S = "${UNPACKDIR}"

COMPATIBLE_MACHINE = "(tegra)"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${S}/nvbootctrl-backend ${D}${nonarch_libdir}/kentledge/nvbootctrl-backend
}

FILES:${PN} = "${nonarch_libdir}/kentledge"
# Not tegra-redundant-boot: its service runs `nvbootctrl verify` at each start, which says good before our check has looked.
RDEPENDS:${PN} = "tegra-redundant-boot-base"
