# As in oe-core: sources only, whatever PYPI_ARCHIVE_NAME says.
PYPI_PACKAGE_EXT ?= "tar.gz"

def pypi_src_uri(d):
    package = d.getVar("PYPI_PACKAGE")
    return d.expand("https://pypi.invalid/packages/source/%s/%s/${PYPI_PACKAGE}-${PV}.${PYPI_PACKAGE_EXT}" % (package[0], package))

PYPI_SRC_URI ?= "${@pypi_src_uri(d)}"
SRC_URI:prepend = "${PYPI_SRC_URI} "
