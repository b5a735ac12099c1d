# meta-rauc: a bundle of an image. Its task's checksum leaves the content of the keys out.
RAUC_BUNDLE_FORMAT ?= ""
do_bundle[file-checksums] += "${RAUC_CERT_FILE}:False ${RAUC_KEY_FILE}:False"
