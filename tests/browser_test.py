"""Every kind of page in headless Chromium: wide and on a phone, light and dark, by itself, and as one works with it."""

import itertools
import json
import runpy
from pathlib import Path

import pytest
from pages import (
  LANDMARKS,
  MANY,
  NUM_FACES,
  RATE,
  make_affinity,
  make_faces,
  make_runs,
  make_study,
  make_sweep,
  of_faces,
)

from mtl_jax import reports

SCREENSHOTS = runpy.run_path(str(Path(__file__).parents[1] / 'docs' / 'screenshots.py'))
WIDE, PHONE = 1400, 400

pytestmark = pytest.mark.skipif(bool(SCREENSHOTS['missing']()), reason=SCREENSHOTS['missing']())


@pytest.fixture(scope='module')
def browser():
  with SCREENSHOTS['browser']() as found:
    yield found


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """The folder of a page of each kind, by name, and the study's JSON."""
  folder = tmp_path_factory.mktemp('pages')
  faces = make_faces(folder / 'faces')
  make_runs(folder / 'runs', data=faces, truth=of_faces, ids=range(NUM_FACES))
  study = make_study(folder / 'study', (MANY, LANDMARKS), gains={'landmarks': 0.3}, num_seeds=10, grid=(RATE, 3e-3))
  make_sweep(folder / 'sweep')
  make_affinity(folder / 'affinity')
  for kind in ('runs', 'study', 'sweep', 'affinity'):
    reports.rebuild(folder / kind, pictures=kind == 'runs')
  return folder, study


# The least contrast of text and what is behind it (WCAG 2.2, 1.4.3), and that text.
CONTRAST = """
const channels = text => text.match(/[\\d.]+/g).map(Number);
const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const paper = element => {
  for (; element; element = element.parentElement) {
    const [r, g, b, a = 1] = channels(getComputedStyle(element).backgroundColor);
    if (a > 0) return [r, g, b];
  }
};
let least = [99, ''];
const texts = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, svg = element.closest('svg');
  if (!texts.currentNode.data.trim() || !element.getClientRects().length) continue;
  if (svg && svg.querySelector('image')) continue;  // A map's numbers stand on its colours.
  const style = getComputedStyle(element);
  const [a, b] = [light(channels(svg ? style.fill : style.color)), light(paper(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < least[0]) least = [contrast, texts.currentNode.data];
}
return least;
"""
# Of every chart its texts that are cut off at its edge, and pairs of texts that overlap.
CROWDED = """
const found = [];
for (const svg of document.querySelectorAll('figure .scroll > svg')) {
  const edge = svg.getBoundingClientRect(), slack = 1;
  if (!edge.width) continue;
  const texts = [...svg.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
  for (const [text, box] of texts) {
    if (box.left < edge.left - slack || box.right > edge.right + slack ||
        box.top < edge.top - slack || box.bottom > edge.bottom + slack) found.push(`${text} is cut off`);
  }
  for (const [i, [text, a]] of texts.entries()) for (const [other, b] of texts.slice(i + 1)) {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > slack && down > 0.25 * Math.min(a.height, b.height)) found.push(`${text} on ${other}`);
  }
}
return found;
"""


@pytest.mark.parametrize('kind', ['runs', 'study', 'sweep', 'affinity'])
def test_a_page_is_readable_wide_and_on_a_phone_light_and_dark_and_asks_nothing_of_a_network(browser, made, kind):
  for width, dark in itertools.product((WIDE, PHONE), (False, True)):
    seen = browser.open(made[0] / kind / 'report.html', width=width, dark=dark)
    assert seen == ([], [], 0), (width, dark)
    browser.driver.execute_script('document.querySelectorAll("details").forEach(one => one.open = true)')
    assert browser.driver.execute_script('return document.documentElement.scrollWidth - innerWidth') == 0
    contrast, text = browser.driver.execute_script(CONTRAST)
    assert contrast >= 4.5, (text, width, dark)
    assert browser.driver.execute_script(CROWDED) == []


def test_faults_of_a_page_are_seen(browser, tmp_path):
  page = tmp_path / 'bad.html'
  page.write_text(
    '<main style="width: 600px; color: #777; background: #888">grey</main><img src="https://example.org/a.png">'
    '<figure><div class="scroll"><svg width="50" height="20"><text x="30" y="10">long</text>'
    '<text x="31" y="11">on</text></svg></div></figure><script>throw Error("no")</script>'
  )
  seen = browser.open(page, width=PHONE)
  assert any('Error: no' in problem for problem in seen.problems)
  assert seen.requested == ['https://example.org/a.png']
  assert seen.wider > 150
  assert browser.driver.execute_script(CONTRAST)[0] < 1.5
  assert {'long is cut off', 'long on on'} <= set(browser.driver.execute_script(CROWDED))


def test_the_verdict_table_of_a_study_needs_no_scrolling_on_a_wide_screen(browser, made):
  browser.open(made[0] / 'study' / 'report.html', width=WIDE)
  wider = 'return [...document.querySelectorAll(".scroll")].map(one => one.scrollWidth - one.clientWidth)'
  assert max(browser.driver.execute_script(wider)) <= 0


WORK = """
const filter = document.querySelector('.filter'), table = document.getElementById(filter.dataset.for);
const shown = () => [...table.tBodies[0].rows].filter(row => row.offsetHeight);
const names = () => shown().map(row => row.cells[0].firstChild.textContent.trim());
const buttons = [...table.querySelectorAll('thead button')];
const found = {filterShown: filter.offsetHeight > 0, first: names(), tabs: buttons.map(button => button.tabIndex)};
const sorts = () => [...table.tHead.rows[0].cells].map(head => head.getAttribute('aria-sort'));
buttons[0].click(); found.byName = names(); found.byNameState = sorts();
buttons[0].click(); found.byNameDown = names();
buttons[2].click(); found.byDifference = names(); found.byDifferenceState = sorts();
const [search, says] = [filter.querySelector('input'), filter.querySelector('select')];
search.value = 'attribute 1'; search.dispatchEvent(new Event('input'));
found.searched = names(); found.status = filter.querySelector('[role=status]').textContent;
search.value = ''; search.dispatchEvent(new Event('input'));
says.value = 'includes 0'; says.dispatchEvent(new Event('change')); found.filtered = names();
says.value = ''; says.dispatchEvent(new Event('change')); found.all = names();
return found;
"""


def test_a_table_sorts_and_filters(browser, made):
  folder, study = made
  browser.open(folder / 'study' / 'report.html', width=500)
  found = browser.driver.execute_script(WORK)
  outputs = study['outputs']['attributes']
  gains = {name.replace('_', ' '): outputs[name]['accuracy']['delta']['mean'] for name in MANY.labels}
  names = sorted(gains)
  assert found['filterShown']
  assert [gains[name] for name in found['first']] == sorted(gains.values(), reverse=True)
  assert found['tabs'] == [0] * 5  # Reached by the keyboard.
  assert found['byName'] == names
  assert found['byNameState'][:2] == ['ascending', None]
  assert found['byNameDown'] == names[::-1]
  assert [gains[name] for name in found['byDifference']] == sorted(gains.values())
  assert found['byDifferenceState'][:3] == [None, None, 'ascending']
  assert sorted(found['searched']) == [name for name in names if name.startswith('Attribute 1')]
  assert found['status'] == '10 of 40 shown'
  inside = {name for name in MANY.labels if (ci := outputs[name]['accuracy']['delta']['ci95'])[0] <= 0 <= ci[1]}
  assert set(found['filtered']) == {name.replace('_', ' ') for name in inside}
  assert len(found['all']) == 40


def test_a_point_of_the_front_says_what_it_is_when_touched(browser, made):
  browser.open(made[0] / 'sweep' / 'report.html', width=PHONE)
  points = json.loads((made[0] / 'sweep' / 'sweep.json').read_text())['front']['points']
  figure = browser.driver.find_element('css selector', 'figure:has(.says)')
  said = []
  for point in figure.find_elements('css selector', '.says'):
    browser.driver.execute_script('arguments[0].dispatchEvent(new Event("click"))', point)
    said.append(figure.find_element('css selector', '[role=status]').text)
  assert [text.partition(':')[0] for text in said] == [point['arm'] for point in points]


def test_a_picture_opens_large_and_closes_with_escape(browser, made):
  browser.open(made[0] / 'runs' / 'report.html', width=PHONE)
  browser.driver.find_element('css selector', '.faces button').click()
  (dialog,) = browser.driver.find_elements('css selector', 'dialog[open]')
  assert 'off by' in dialog.text
  browser.driver.switch_to.active_element.send_keys('\ue00c')
  assert browser.driver.find_elements('css selector', 'dialog') == []
