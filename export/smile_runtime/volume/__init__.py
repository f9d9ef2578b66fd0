"""A CT volume as arrays: orientation, Hounsfield units, the body's box, components and volumes of organs."""
