"""NIfTI files with all combinations of units, dimensions and forms, and the position of label maps on them.

`matrix.py make FOLDER` writes the images. `matrix.py check IMAGES LABELS` compares, for every image, where nibabel and
SimpleITK see its voxels with where they see those of its label map: within 1e-4 mm for both.
"""

import itertools
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

TOLERANCE_MM = 1e-4
# Code of xyzt_units: unknown, metre, millimetre, micron.
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# dim[0] and the extents along x, y, z, t.
EXTENTS = {2: (22, 18), 3: (22, 18, 16), 4: (22, 18, 16, 1)}
ANGLE = 0.3
QUATERNION = (np.sin(ANGLE / 2), 0.0, 0.0)
SPACING_MM = (0.8, 0.9, 1.5)
OFFSET_MM = (-12.0, 30.5, 7.25)


def rotation():
    sine, cosine = np.sin(ANGLE), np.cos(ANGLE)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


def affine(shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation() @ np.diag(SPACING_MM)
    matrix[:3, 3] = np.add(OFFSET_MM, shift)
    return matrix


def forms():
    """Name, sform, code of the sform, code of the qform."""
    for sform_code, qform_code in itertools.product([0, 1, 2, 4], [0, 1, 2]):
        yield f"s{sform_code}q{qform_code}", affine(), sform_code, qform_code
    yield "differ", affine(shift=(5.0, -6.0, 7.0)), 2, 1
    yield "singular", np.zeros((4, 4)), 1, 1


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for (unit, to_mm), (dimensions, extents) in itertools.product(UNITS.items(), EXTENTS.items()):
        for name, sform, sform_code, qform_code in forms():
            header = nibabel.Nifti1Header()
            header.set_data_dtype(np.int16)
            header.set_data_shape(extents)
            header["xyzt_units"] = unit
            scale = 1.0 / to_mm
            header["pixdim"][:4] = [1.0, *np.multiply(SPACING_MM, scale)]
            header["sform_code"], header["qform_code"] = sform_code, qform_code
            header["quatern_b"], header["quatern_c"], header["quatern_d"] = QUATERNION
            for axis, offset in zip("xyz", np.multiply(OFFSET_MM, scale)):
                header[f"qoffset_{axis}"] = offset
            for row, values in zip("xyz", sform[:3] * scale):
                header[f"srow_{row}"] = values
            header["vox_offset"] = 352
            header["magic"] = b"n+1"
            data = rng.integers(0, 200, size=extents, dtype=np.int16)
            path = folder / f"u{unit}d{dimensions}{name}_0000.nii"
            path.write_bytes(header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F"))


def corners(shape):
    shape = [*shape[:3], *[1] * (3 - len(shape[:3]))]
    return list(itertools.product(*[(0, extent - 1) for extent in shape]))


def in_nibabel(path):
    """Corners in mm, or None if nibabel takes a singular sform. nibabel leaves the units to the reader."""
    image = nibabel.load(path)
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        return None
    to_mm = UNITS[int(image.header["xyzt_units"]) & 7]
    points = np.array([[*corner, 1] for corner in corners(image.shape)])
    return (points @ image.affine.T)[:, :3] * to_mm


def in_simple_itk(path):
    """Corners in mm, or None if SimpleITK refuses the file."""
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return None
    size = image.GetSize()
    return np.array([image.TransformIndexToPhysicalPoint([int(c) for c in corner[: len(size)]]
                     + [0] * (len(size) - 3)) for corner in corners(size)])


def check(images, labels):
    failures, compared = [], 0
    for image in sorted(images.glob("*_0000.nii")):
        label = labels / image.name.replace("_0000", "")
        if not label.exists():
            failures.append(f"{image.name}: no label map")
            continue
        for reader in (in_nibabel, in_simple_itk):
            expected = reader(image)
            if expected is None:
                continue
            found = reader(label)
            compared += 1
            if found is None or found.shape[1] < expected.shape[1] and found.shape != expected.shape:
                failures.append(f"{image.name}: {reader.__name__}: the label map is not readable, or has other axes")
                continue
            axes = min(found.shape[1], expected.shape[1], 3)
            distance = np.abs(found[:, :axes] - expected[:, :axes]).max()
            if not distance <= TOLERANCE_MM:
                failures.append(f"{image.name}: {reader.__name__}: {distance:.6g} mm apart")
    print(f"{compared} comparisons, {len(failures)} failures")
    print("\n".join(failures))
    return not failures and compared > 0


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        sys.exit(0 if check(Path(sys.argv[2]), Path(sys.argv[3])) else 1)
