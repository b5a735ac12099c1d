# meta-rauc: a bundle of an image.
RAUC_BUNDLE_FORMAT ?= ""
