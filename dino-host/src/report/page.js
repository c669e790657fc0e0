for (const svg of document.querySelectorAll('svg[data-lines]')) {
  const lines = svg.dataset.lines.split(';').map(l => { const [name, ...p] = l.split(','); return { name, p: p.map(q => q.split(' ')) } });
  const out = svg.parentNode.querySelector('output'), cursor = svg.querySelector('.cursor');
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let at = null;
    const values = lines.map(l => {
      const q = l.p.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      if (!at || Math.abs(q[0] - x) < Math.abs(at[0] - x)) at = q;
      return (lines.length > 1 ? l.name + ' ' : '') + q[2];
    });
    out.textContent = svg.dataset.along + ' ' + at[1] + ': ' + values.join(', ');
    cursor.setAttribute('d', 'M' + at[0] + ' 10V176');
  });
  svg.addEventListener('pointerleave', () => { out.textContent = ''; cursor.setAttribute('d', '') });
}
