// The canvas of the demo's page; gradio gives `element`, `props` and `trigger`.
// A line of 24 pixels of 336 becomes MNIST's 2 to 3 pixels of 28.
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
Object.assign(pen, {fillStyle: 'white', lineWidth: 24, lineCap: 'round', lineJoin: 'round'});
let last = null, sent = 0;
function send() { sent = Date.now(); props.value = canvas.toDataURL(); trigger('input'); }
function clear() { pen.fillRect(0, 0, canvas.width, canvas.height); }
function draw(event) {
  if (!event.isPrimary) return;  // a second finger
  if (event.type === 'pointerdown') {
    if (event.button) return;  // of a mouse, not the left one
    canvas.setPointerCapture(event.pointerId);
    last = null;
  } else if (last === null) return;
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const next = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  pen.beginPath(); pen.moveTo(...(last ?? next)); pen.lineTo(...next); pen.stroke();
  last = event.type === 'pointerup' || event.type === 'pointercancel' ? null : next;
  if (last === null || Date.now() - sent > 200) send();
}
canvas.onpointerdown = canvas.onpointermove = canvas.onpointerup = canvas.onpointercancel = draw;
element.querySelector('button').onclick = () => { clear(); send(); };
clear();
