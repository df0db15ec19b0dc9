"""Script: render with the OpenGL backend named by its argument, as a run would.

Exit 0 if mujoco and dm_control both render with it here, else print why not. It obeys the
environment variables that a run obeys: MUJOCO_EGL_DEVICE_ID, DISPLAY and those of the drivers.
"""

import ctypes
import importlib
import os
import sys
from typing import Any

EGL_PLATFORM_DEVICE_EXT = 0x313F
MODEL = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"


def egl_error() -> str | None:
    """Why EGL cannot work, found without Python packages, whose own errors are obscure."""
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
    devices = (ctypes.c_void_p * 10)()  # as many as mujoco and dm_control ask for
    count = ctypes.c_int()
    ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)(
        len(devices), devices, ctypes.byref(count)
    )
    candidates = devices[: count.value]
    number = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if number is not None and candidates:
        if not (number.strip().isdecimal() and int(number) < count.value):
            there = "0" if count.value == 1 else f"a number from 0 to {count.value - 1}"
            return f"MUJOCO_EGL_DEVICE_ID: expected {there}, received {number!r}"
        candidates = [candidates[int(number)]]
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    get_display = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
    )(display_of)
    for device in candidates:
        display = get_display(EGL_PLATFORM_DEVICE_EXT, device, None)
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


def glfw_error() -> str | None:
    import glfw

    if glfw.init():
        return None
    display = os.environ.get("DISPLAY")
    screen = f"no screen answers at DISPLAY={display}" if display else "DISPLAY is not set"
    return f"it needs a screen, but {screen}"


def rendering_error() -> str | None:
    """Why mujoco or dm_control does not render a sphere."""
    mj: Any = importlib.import_module("mujoco")
    dm_control: Any = importlib.import_module("dm_control._render")
    model = mj.MjModel.from_xml_string(MODEL)
    data = mj.MjData(model)
    mj.mj_forward(model, data)
    renderer = mj.Renderer(model, 16, 16)
    renderer.update_scene(data)
    image = renderer.render()
    renderer.close()
    context = dm_control.Renderer(16, 16)
    with context.make_current() as gl:
        gl.call(mj.MjrContext, model, mj.mjtFontScale.mjFONTSCALE_150)
    context.free()
    return "its images are blank" if image.min() == image.max() else None


def error_of(backend: str) -> str | None:
    missing = {"egl": egl_error, "osmesa": osmesa_error, "glfw": glfw_error}[backend]
    try:
        return missing() or rendering_error()
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    found = error_of(sys.argv[1])
    print(found or "", flush=True)
    if found:
        os._exit(1)  # half-made contexts raise when they are deleted
