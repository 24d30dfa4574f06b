"""`python -m tests.house_rules.rooms` writes into ARCHITECTURE.md what rooms and files there are."""

from tests.house_rules.python_files import ROOT, wheel_packages
from tests.house_rules.rooms.house import read_house
from tests.house_rules.rooms.page import PAGE, replaced

if __name__ == "__main__":
    page = ROOT / PAGE
    page.write_text(replaced(page.read_text(), read_house(ROOT, wheel_packages(ROOT))))
