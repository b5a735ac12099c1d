# Who may ask RAUC: replaces RAUC's own rule, which is in this recipe's package rauc-service.
FILESEXTRAPATHS:prepend := "${KENTLEDGE_MAIN}/yocto-layer/files/rauc:"

SRC_URI:append:kentledge-distro = " file://de.pengutronix.rauc.conf"

do_install:append:kentledge-distro() {
    install -D -m 0644 ${UNPACKDIR}/de.pengutronix.rauc.conf ${D}${datadir}/dbus-1/system.d/de.pengutronix.rauc.conf
}

# kentledge-boot-check marks a slot good, after its own check; rauc-mark-good would do so at each start.
RRECOMMENDS:${PN}:remove:kentledge-distro = "${PN}-mark-good"
