"""Files of triangle meshes: PLY, OBJ, STL and GIfTI in, PLY and OBJ out."""

from __future__ import annotations

import gzip
import zlib
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mmext.files import write_whole
from mmext.inr.tasks.meshes import Mesh

__all__ = ['read_mesh', 'write_mesh']

_PLY_TYPES = {
    **dict.fromkeys(('char', 'int8'), 'i1'),
    **dict.fromkeys(('uchar', 'uint8'), 'u1'),
    **dict.fromkeys(('short', 'int16'), 'i2'),
    **dict.fromkeys(('ushort', 'uint16'), 'u2'),
    **dict.fromkeys(('int', 'int32'), 'i4'),
    **dict.fromkeys(('uint', 'uint32'), 'u4'),
    **dict.fromkeys(('float', 'float32'), 'f4'),
    **dict.fromkeys(('double', 'float64'), 'f8'),
}


def read_mesh(path: str | Path) -> Mesh:
    """Read a PLY (ascii or binary), OBJ, STL (ascii or binary) or GIfTI file; faces of more corners become triangles.

    Raises:
        ValueError: If there is no such file, its name has another ending, or it cannot be read.
    """
    path = Path(path)
    kind = ''.join(path.suffixes[-2:]) if path.suffix == '.gz' else path.suffix
    reader = _READERS.get(kind.lower())
    if reader is None:
        raise ValueError(f'{path} has an ending that says no kind of mesh; the kinds are {", ".join(_READERS)}')
    if not path.is_file():
        raise ValueError(f'there is no mesh {path}; give the path of a file')
    try:
        return reader(path.read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} is no mesh that can be read ({error}); export it again as binary PLY') from error
    except Exception as error:  # of a hostile file: KeyError, IndexError, struct.error, zlib.error and others
        raise ValueError(f'{path} is no mesh that can be read ({error!r}); export it again as binary PLY') from error


def _read_ply(data: bytes) -> Mesh:
    end = data.index(b'end_header')
    end = data.index(b'\n', end) + 1
    header = data[:end].decode('ascii').split('\n')
    form = 'ascii'
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in (line.split() for line in header):
        if words[:1] == ['format']:
            form = words[1]
        elif words[:1] == ['element']:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ['property']:
            elements[-1][2].append(words[1:])
    tables: dict[str, Any] = {}
    if form == 'ascii':
        values, place = np.array(data[end:].split(), dtype=np.float64), 0
        for name, count, properties in elements:
            tables[name], place = _ascii_element(values, place, count, properties)
    else:
        order, place = {'binary_little_endian': '<', 'binary_big_endian': '>'}[form], end
        for name, count, properties in elements:
            tables[name], place = _binary_element(data, place, count, properties, order)
    vertices = np.stack([tables['vertex'][axis] for axis in 'xyz'], 1)
    lists = next(v for k, v in tables['face'].items() if k in ('vertex_indices', 'vertex_index'))
    return Mesh(vertices, _triangles(lists))


def _ascii_element(values: np.ndarray, place: int, count: int, properties: list) -> tuple[dict, int]:
    if all(p[0] != 'list' for p in properties):
        table = values[place : place + count * len(properties)].reshape(count, len(properties))
        return {p[-1]: table[:, i] for i, p in enumerate(properties)}, place + table.size
    rows: dict[str, list] = {p[-1]: [] for p in properties}
    for _ in range(count):
        for p in properties:
            length = int(values[place]) if p[0] == 'list' else 1
            place += p[0] == 'list'
            if place + length > len(values):
                raise ValueError('it ends before its last element')
            rows[p[-1]].append(values[place : place + length])
            place += length
    return rows, place


def _binary_element(data: bytes, place: int, count: int, properties: list, order: str) -> tuple[dict, int]:
    if not count:
        return {p[-1]: np.zeros((0, 3) if p[0] == 'list' else 0) for p in properties}, place
    if all(p[0] != 'list' for p in properties):
        row = np.dtype([(p[-1], order + _PLY_TYPES[p[0]]) for p in properties])
        table = np.frombuffer(data, row, count, place)
        return {p[-1]: table[p[-1]] for p in properties}, place + table.nbytes
    # Lists are nearly always of one length; then the element is a table, too.
    fields = []
    probe = place
    for p in properties:
        if p[0] == 'list':
            length_type = np.dtype(order + _PLY_TYPES[p[1]])
            length = int(np.frombuffer(data, length_type, 1, probe)[0])
            fields += [(f'{p[-1]} length', length_type), (p[-1], order + _PLY_TYPES[p[2]], (length,))]
        else:
            fields.append((p[-1], order + _PLY_TYPES[p[0]]))
        probe = place + np.dtype(fields).itemsize
    row = np.dtype(fields)
    if place + count * row.itemsize <= len(data):
        table = np.frombuffer(data, row, count, place)
        lists = [p[-1] for p in properties if p[0] == 'list']
        if all((table[f'{n} length'] == row[n].shape[0]).all() for n in lists):
            return {p[-1]: table[p[-1]] for p in properties}, place + table.nbytes
    rows: dict[str, list] = {p[-1]: [] for p in properties}
    for _ in range(count):
        for p in properties:
            length = 1
            if p[0] == 'list':
                length_type = np.dtype(order + _PLY_TYPES[p[1]])
                length = int(np.frombuffer(data, length_type, 1, place)[0])
                place += length_type.itemsize
            values = np.frombuffer(data, order + _PLY_TYPES[p[2] if p[0] == 'list' else p[0]], length, place)
            rows[p[-1]].append(values)
            place += values.nbytes
    return rows, place


def _triangles(lists: Any) -> np.ndarray:
    if isinstance(lists, np.ndarray):
        corners = lists.astype(np.int64)
        return np.concatenate([corners[:, (0, i, i + 1)] for i in range(1, corners.shape[1] - 1)])
    return np.array([(row[0], row[i], row[i + 1]) for row in lists for i in range(1, len(row) - 1)], dtype=np.int64)


def _read_obj(data: bytes) -> Mesh:
    vertices, faces = [], []
    for words in (line.split() for line in data.decode('utf-8', 'replace').splitlines()):
        if words[:1] == ['v']:
            vertices.append([float(w) for w in words[1:4]])
        elif words[:1] == ['f']:
            index = [int(w.partition('/')[0]) for w in words[1:]]
            # Counted from one, or backwards from the last one so far.
            faces.append([i - 1 if i > 0 else len(vertices) + i for i in index])
    if not vertices:
        raise ValueError('it has no vertex')
    return Mesh(vertices, _triangles(faces))


def _read_stl(data: bytes) -> Mesh:
    count = int.from_bytes(data[80:84], 'little')
    corners: Any
    if len(data) == 84 + 50 * count:
        row = np.dtype([('normal', '<f4', 3), ('corners', '<f4', (3, 3)), ('extra', '<u2')])
        corners = np.frombuffer(data, row, count, 84)['corners'].reshape(-1, 3)
    elif data.lstrip()[:5].lower() == b'solid':
        words = data.split()
        places = [i for i, word in enumerate(words) if word == b'vertex']
        corners = np.array([[float(w) for w in words[i + 1 : i + 4]] for i in places], np.float32)
    else:
        raise ValueError(f'{len(data)} bytes are not those of {count} triangles')
    vertices, index = np.unique(corners, axis=0, return_inverse=True)
    return Mesh(vertices, index.reshape(-1, 3))


def _read_gifti(data: bytes) -> Mesh:
    tree = ElementTree.fromstring(gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data)
    arrays = {}
    for node in tree.iter('DataArray'):
        kind = {'NIFTI_TYPE_FLOAT32': 'f4', 'NIFTI_TYPE_INT32': 'i4'}[node.attrib['DataType']]
        order = '<' if node.attrib['Endian'] == 'LittleEndian' else '>'
        raw = b64decode(node.findtext('Data') or '')
        raw = zlib.decompress(raw) if node.attrib['Encoding'] == 'GZipBase64Binary' else raw
        arrays[node.attrib['Intent']] = np.frombuffer(raw, order + kind).reshape(-1, 3)
    return Mesh(arrays['NIFTI_INTENT_POINTSET'], arrays['NIFTI_INTENT_TRIANGLE'])


_READERS: dict[str, Callable[[bytes], Mesh]] = {
    '.ply': _read_ply,
    '.obj': _read_obj,
    '.stl': _read_stl,
    '.gii': _read_gifti,
    '.gii.gz': _read_gifti,
}


def write_mesh(path: str | Path, mesh: Mesh, colors: np.ndarray | None = None) -> None:
    """Write a mesh as binary PLY or as OBJ, by the ending of the name; a reader never sees half a file.

    Args:
        path: The file.
        mesh: The mesh.
        colors: Red, green and blue of each vertex in [0, 1], (V, 3).

    Raises:
        ValueError: If the name has another ending.
    """
    path = Path(path)
    shades = None if colors is None else np.round(255 * np.clip(colors, 0, 1)).astype(np.uint8)
    if path.suffix == '.ply':
        names = [(axis, '<f4') for axis in 'xyz']
        names += [] if shades is None else [(name, 'u1') for name in ('red', 'green', 'blue')]
        table = np.empty(len(mesh.vertices), names)
        for i, axis in enumerate('xyz'):
            table[axis] = mesh.vertices[:, i]
        if shades is not None:
            for i, name in enumerate(('red', 'green', 'blue')):
                table[name] = shades[:, i]
        faces = np.empty(len(mesh.faces), [('length', 'u1'), ('index', '<i4', (3,))])
        faces['length'], faces['index'] = 3, mesh.faces
        lines = ['ply', 'format binary_little_endian 1.0', f'element vertex {len(table)}']
        lines += [f'property {"float" if kind == "<f4" else "uchar"} {name}' for name, kind in names]
        lines += [f'element face {len(faces)}', 'property list uchar int vertex_indices', 'end_header', '']
        write_whole(path, '\n'.join(lines).encode() + table.tobytes() + faces.tobytes())
    elif path.suffix == '.obj':
        rows = mesh.vertices if shades is None else np.concatenate((mesh.vertices, shades / 255), 1)
        text = ''.join(f'v {" ".join(f"{value:.7g}" for value in row)}\n' for row in rows)
        text += ''.join(f'f {a} {b} {c}\n' for a, b, c in mesh.faces + 1)
        write_whole(path, text.encode())
    else:
        raise ValueError(f'a mesh is written as .ply or .obj, got {path}; change the ending')
