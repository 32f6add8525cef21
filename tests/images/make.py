"""Writes the files of this folder with SimpleITK, tifffile and Pillow.

Voxel (x, y, z) holds x + 4 y + 12 z; tests/it/data/formats.rs has the geometry that SimpleITK reads.
"""

import json

import numpy
import SimpleITK
import tifffile
from PIL import Image

ramp = numpy.arange(24, dtype=numpy.int16).reshape(2, 3, 4)
cosine, sine = numpy.cos(0.3), numpy.sin(0.3)
turned = numpy.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, 0, -1], [0, 1, 0]]

image = SimpleITK.GetImageFromArray(ramp)
image.SetSpacing((0.5, 0.75, 2))
image.SetOrigin((1, -2, 3))
image.SetDirection(turned.ravel().tolist())
for name in ["packed.mha", "packed.mhd", "packed.nrrd", "packed.nhdr"]:
    SimpleITK.WriteImage(image, name, True)
SimpleITK.WriteImage(image, "plain.mhd", False)

plane = SimpleITK.GetImageFromArray(ramp[0])
plane.SetSpacing((0.5, 0.75))
plane.SetOrigin((1, -2))
plane.SetDirection([cosine, -sine, sine, cosine])
SimpleITK.WriteImage(plane, "plane.mha")
SimpleITK.WriteImage(plane, "plane.nrrd")

vectors = numpy.stack([ramp, 100 + ramp], axis=-1).astype(numpy.float32)
image = SimpleITK.GetImageFromArray(vectors, isVector=True)
SimpleITK.WriteImage(image, "vector.mha")
SimpleITK.WriteImage(image, "vector.nrrd")
image = SimpleITK.GetImageFromArray(numpy.stack([ramp, 100 + ramp]).astype(numpy.uint8), isVector=False)
SimpleITK.WriteImage(image, "four.mha")
SimpleITK.WriteImage(image, "four.nrrd")
SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp.astype(numpy.int64)), "long.nrrd")

tifffile.imwrite("stack_0000.tif", ramp.astype(numpy.uint16), photometric="minisblack", compression="zlib")
json.dump({"spacing": [2.0, 0.75, 0.5]}, open("stack.json", "w"))
Image.fromarray(ramp[0].astype(numpy.uint8)).save("grey.bmp")
Image.fromarray(numpy.stack([ramp[0]] * 3, axis=-1).astype(numpy.uint8)).save("colour.bmp")
