# meta-rauc: RAUC with a D-Bus rule that lets anyone in, and a service that marks good at each start.
SRC_URI = ""
do_install() {
    install -d ${D}${datadir}/dbus-1/system.d
    echo anyone >${D}${datadir}/dbus-1/system.d/de.pengutronix.rauc.conf
}
RRECOMMENDS:${PN}:append = " ${PN}-mark-good"
