def pypi_src_uri(d):
    package = d.getVar("PYPI_PACKAGE")
    return "https://pypi.invalid/packages/source/%s/%s/%s" % (package[0], package, d.getVar("PYPI_ARCHIVE_NAME"))

SRC_URI = "${PYPI_SRC_URI}"
