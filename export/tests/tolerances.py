"""How far numbers of the runtime may lie from those that are expected. Labels are compared bit for bit, always."""

# A NIfTI header holds its affine in float32, whose step is 2^-24 = 6e-8 of a number; a spacing is made of three of
# them and a volume of three spacings.
AFFINE_RELATIVE = 1e-6

# mm; one voxel's place computed by two affines in float64, at up to some hundred mm: 1e-16 of them for each of a few
# additions.
SAME_PLACE_MM = 1e-9

# mm; places of a few cm that went through a quaternion of float32 and back.
SAME_HEADER_MM = 1e-5

# mm; what two programs that write one grid may differ in, by rounding to four digits.
ROUNDED_HEADER_MM = 2e-4

# Share of padding that is found where its edge moves by a pixel or two from slice to slice, as tissue may by chance.
PADDING_FOUND = 0.99
