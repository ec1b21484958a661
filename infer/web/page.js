// What the page does without the server: tabs, simple or expert, the scribble canvas, the slider, the image viewer.
(() => {
  const storage = { get: (name) => { try { return localStorage.getItem(name) } catch { return null } },
                    set: (name, value) => { try { localStorage.setItem(name, value) } catch { /* private window */ } } }

  const studio = {
    place(value) { document.body.dataset.place = value; return value },
    mode(value) { document.body.dataset.mode = value; storage.set('atelier-mode', value); return value },
    start() {
      studio.place('Generate')
      return studio.mode(storage.get('atelier-mode') === 'Expert' ? 'Expert' : 'Simple')
    },
    // the inputs of the Generate button, with the scribble as the last of them
    inputs(values) {
      const wanted = document.body.dataset.place === 'Scribble' && scribble.strokes.length > 0
      values[values.length - 1] = wanted ? scribble.canvas.toDataURL('image/png') : ''
      if (matchMedia('(max-width: 820px)').matches)
        document.getElementById('stage')?.scrollIntoView({ behavior: 'smooth', block: 'start' })
      return values
    },
  }

  // ---- scribble: black lines on white, stored as strokes so that each can be undone
  const scribble = {
    strokes: [], gone: [], canvas: null,
    begin(element) {
      const canvas = element.querySelector('canvas')
      scribble.canvas = canvas
      scribble.paint()
      canvas.addEventListener('pointerdown', (event) => {
        if (event.button) return
        canvas.setPointerCapture(event.pointerId)
        scribble.strokes.push({ width: scribble.width(), points: [scribble.at(event)] })
        scribble.gone = []
        scribble.paint()
      })
      canvas.addEventListener('pointermove', (event) => {
        if (!canvas.hasPointerCapture(event.pointerId)) return
        const moves = event.getCoalescedEvents?.() ?? []
        for (const move of moves.length ? moves : [event]) scribble.strokes.at(-1).points.push(scribble.at(move))
        scribble.paint()
      })
      element.addEventListener('click', (event) => {
        const act = event.target.closest('[data-pen]')?.dataset.pen
        if (act) scribble[act]()
      })
      canvas.addEventListener('keydown', scribble.keys)
    },
    width() { return Number(document.querySelector('#scribble input[type=range]')?.value ?? 4) * 4 },
    at(event) {
      const box = scribble.canvas.getBoundingClientRect(), scale = scribble.canvas.width / box.width
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]
    },
    undo() { if (scribble.strokes.length) scribble.gone.push(scribble.strokes.pop()); scribble.paint() },
    redo() { if (scribble.gone.length) scribble.strokes.push(scribble.gone.pop()); scribble.paint() },
    clear() { scribble.gone = scribble.strokes.splice(0).reverse(); scribble.paint() },
    keys(event) {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== 'z') return
      event.preventDefault()
      event.shiftKey ? scribble.redo() : scribble.undo()
    },
    paint() {
      const pen = scribble.canvas.getContext('2d')
      pen.fillStyle = 'white'
      pen.fillRect(0, 0, scribble.canvas.width, scribble.canvas.height)
      pen.strokeStyle = 'black'
      pen.lineCap = pen.lineJoin = 'round'
      for (const { width, points } of scribble.strokes) {
        pen.lineWidth = width
        pen.beginPath()
        pen.moveTo(...points[0])
        for (const point of points.length > 1 ? points.slice(1) : points) pen.lineTo(...point)
        pen.stroke()
      }
      document.getElementById('scribble').classList.toggle('drawn', scribble.strokes.length > 0)
    },
  }
  studio.scribble = scribble

  // ---- clicks in our own HTML; `send` is Gradio's way to the server
  studio.listen = (element, send) => {
    element.addEventListener('click', (event) => {
      const tile = event.target.closest('.tile')
      if (tile) return open(element, tile)
      const button = event.target.closest('[data-act]')
      if (!button) return
      const dialog = button.closest('dialog')
      const act = button.dataset.act, path = button.dataset.path ?? dialog?.dataset.path
      if (act !== 'star') dialog?.close()
      if (act === 'star') mark(element, dialog)
      if (act !== 'close') send({ act, picture: path, star: Number(dialog?.dataset.star ?? 0) })
    })
    element.addEventListener('input', (event) => {
      const compare = event.target.closest('.compare')
      if (compare) compare.style.setProperty('--at', `${event.target.value}%`)
    })
  }
  function open(element, tile) {
    const about = JSON.parse(tile.dataset.about), dialog = element.querySelector('dialog')
    dialog.dataset.path = about.path
    dialog.dataset.star = about.star
    const source = tile.querySelector('img').src
    dialog.querySelector('img').src = source
    dialog.querySelector('h3').textContent = about.prompt
    const save = dialog.querySelector('a')
    save.href = source
    save.download = about.path.split('/').at(-1)
    dialog.querySelector('dl').replaceChildren(...Object.entries(about.facts).flatMap(([name, value]) => {
      const term = document.createElement('dt'), fact = document.createElement('dd')
      term.textContent = name
      fact.textContent = value
      return [term, fact]
    }))
    dialog.querySelector('[data-act=star]').ariaPressed = about.star ? 'true' : 'false'
    dialog.showModal()
  }
  function mark(element, dialog) {
    dialog.dataset.star = 1 - Number(dialog.dataset.star)
    dialog.querySelector('[data-act=star]').ariaPressed = dialog.dataset.star === '1' ? 'true' : 'false'
    for (const tile of element.querySelectorAll('.tile')) {
      const about = JSON.parse(tile.dataset.about)
      if (about.path !== dialog.dataset.path) continue
      about.star = Number(dialog.dataset.star)
      tile.dataset.about = JSON.stringify(about)
      tile.querySelector('.star')?.remove()
      if (about.star) tile.insertAdjacentHTML('beforeend', '<i class="star" aria-label="favorite">\u2605</i>')
    }
  }

  // ---- keys: Ctrl+Enter generates from anywhere, Escape stops
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) document.getElementById('generate')?.click()
    if (event.key === 'Escape' && !document.querySelector('dialog[open]')) document.getElementById('stop')?.click()
  })
  document.addEventListener('click', (event) => {
    const idea = event.target.closest('[data-idea]')
    const field = document.querySelector('#prompt textarea, #prompt input')
    if (!idea || !field) return
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, idea.dataset.idea)
    field.dispatchEvent(new Event('input', { bubbles: true }))
    field.focus()
  })
  window.studio = studio
  studio.place('Generate')
  studio.mode(storage.get('atelier-mode') === 'Expert' ? 'Expert' : 'Simple')
})()
