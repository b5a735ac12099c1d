# meta-rauc: RAUC's configuration, to be replaced.
RAUC_KEYRING_FILE ??= "ca.cert.pem"
RAUC_KEYRING_URI ??= "file://${RAUC_KEYRING_FILE}"
SRC_URI = "${RAUC_KEYRING_URI}"
