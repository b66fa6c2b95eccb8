"""A drawing pad that answers while a stroke is drawn.

gradio's own sketchpad wants a tool to be chosen first and reports a stroke when it is finished; this one is a canvas.
"""

import base64
import binascii

import gradio as gr
import numpy as np

SIDE = 140
"""Pixels a side that the server gets."""
BRUSH = 22

TEMPLATE = """
<canvas width="280" height="280" tabindex="0" role="img" aria-label="drawing pad: draw with mouse or finger"></canvas>
<div class="tools">
<button type="button" data-tool="draw" aria-pressed="true">Draw</button>
<button type="button" data-tool="rub" aria-pressed="false">Rub out</button>
<button type="button" data-tool="clear">Clear</button>
</div>
"""
SCRIPT = """
const canvas = element.querySelector('canvas');
const pen = canvas.getContext('2d');
const small = Object.assign(document.createElement('canvas'), {width: SIDE, height: SIDE});
const reader = small.getContext('2d', {willReadFrequently: true});
let last = null, rubbing = false, waiting = null;

const send = () => {
    waiting = null;
    reader.clearRect(0, 0, SIDE, SIDE);
    reader.drawImage(canvas, 0, 0, SIDE, SIDE);
    const pixels = reader.getImageData(0, 0, SIDE, SIDE).data;
    let ink = '';
    for (let i = 3; i < pixels.length; i += 4) ink += String.fromCharCode(pixels[i]);
    trigger('input', {ink: btoa(ink)});
};
const soon = () => { waiting = waiting ?? setTimeout(send, 120); };
const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
const draw = (event) => {
    const here = place(event);
    pen.globalCompositeOperation = rubbing ? 'destination-out' : 'source-over';
    Object.assign(pen, {lineWidth: BRUSH, lineCap: 'round', lineJoin: 'round', strokeStyle: '#000'});
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...here);
    pen.stroke();
    last = here;
    soon();
};
canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    draw(event);
});
canvas.addEventListener('pointermove', (event) => { if (last) draw(event); });
for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { last = null; });
element.querySelector('.tools').addEventListener('click', (event) => {
    const tool = event.target.dataset.tool;
    if (tool === 'clear') {
        pen.clearRect(0, 0, canvas.width, canvas.height);
        send();
    } else if (tool) {
        rubbing = tool === 'rub';
        for (const one of element.querySelectorAll('[aria-pressed]'))
            one.setAttribute('aria-pressed', one.dataset.tool === tool);
    }
});
"""


def pad() -> gr.HTML:
    """Put a drawing pad on the page that is being built.

    Returns:
        A component whose `input` event carries what is drawn as `ink`; see `ink_of`.
    """
    script = SCRIPT.replace("SIDE", str(SIDE)).replace("BRUSH", str(BRUSH))
    return gr.HTML(html_template=TEMPLATE, js_on_load=script, elem_id="pad")


def ink_of(code: str) -> np.ndarray:
    """Decode what the pad sends.

    Args:
        code: Base64 of one byte of opacity a pixel, row by row.

    Returns:
        float32 [SIDE, SIDE], 0 for no ink to 1; without any ink where the code is not the pad's.
    """
    try:
        content = base64.b64decode(code, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) != SIDE * SIDE:
        content = bytes(SIDE * SIDE)
    return np.frombuffer(content, np.uint8).reshape(SIDE, SIDE).astype(np.float32) / 255
