"""Run by the realm's interpreter: stdin to stdout through the packages' Zstandard library, level in argv[1]."""

import ctypes
import sys

zstd = ctypes.CDLL("libzstd.so.1")
zstd.ZSTD_compressBound.restype = zstd.ZSTD_compress.restype = ctypes.c_size_t
zstd.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
zstd.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
data = sys.stdin.buffer.read()
target = ctypes.create_string_buffer(zstd.ZSTD_compressBound(len(data)))
size = zstd.ZSTD_compress(target, len(target), data, len(data), int(sys.argv[1]))
if zstd.ZSTD_isError(ctypes.c_size_t(size)):
    sys.exit("ZSTD_compress failed")
sys.stdout.buffer.write(memoryview(target)[:size])
