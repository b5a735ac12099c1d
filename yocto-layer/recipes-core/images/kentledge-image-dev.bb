SUMMARY = "Kentledge: the image of a bench"
DESCRIPTION = "The same with a root shell on the console and tools to look deeper. Not for the field."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "images"
LICENSE = "Apache-2.0 | MIT"

inherit kentledge_image

KENTLEDGE_RELEASE = "0"
IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password tools-debug"
IMAGE_INSTALL += "strace mosquitto-clients iproute2 libgpiod-tools"
