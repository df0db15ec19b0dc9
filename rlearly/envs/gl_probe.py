"""Script: probe the OpenGL backend named by its argument. Exit 0 if it works, else print why not.

It imports only the standard library, so a probe takes some tens of milliseconds.
"""

import ctypes
import sys


def egl_error() -> str | None:
    for library in ("libOpenGL.so.0", "libEGL.so.1"):
        try:
            egl = ctypes.CDLL(library)
        except OSError:
            return f"{library} is not installed"
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query, display_of = (
        egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    )
    if not query or not display_of:
        return "libEGL cannot enumerate devices"
    devices = (ctypes.c_void_p * 16)()
    count = ctypes.c_int()
    ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)(
        16, devices, ctypes.byref(count)
    )
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    get_display = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
    )(display_of)
    for device in devices[: count.value]:
        display = get_display(0x313F, device, None)  # EGL_PLATFORM_DEVICE_EXT
        if display and egl.eglInitialize(display, None, None):
            return None
    return "no device can be initialised (is libgl1-mesa-dri or a GPU driver installed?)"


def osmesa_error() -> str | None:
    for library in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return None
    return "libOSMesa is not installed"


if __name__ == "__main__":
    error = {"egl": egl_error, "osmesa": osmesa_error}[sys.argv[1]]()
    print(error or "")
    sys.exit(1 if error else 0)
