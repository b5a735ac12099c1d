# meta-rauc: an example configuration and keyring, to be replaced; without a keyring its do_install ends.
RAUC_KEYRING_FILE ??= "ca.cert.pem"
RAUC_KEYRING_URI ??= "file://${RAUC_KEYRING_FILE}"
SRC_URI = "${RAUC_KEYRING_URI}"
do_install() {
    install -d ${D}${nonarch_libdir}/rauc
    install -m 0644 ${UNPACKDIR}/${RAUC_KEYRING_FILE} ${D}${nonarch_libdir}/rauc/
}
FILES:${PN} += "${nonarch_libdir}/rauc"
