# The two commands: `make demo` (the main job on a generated server) and `make test`.
# Each installs what is missing first, and does nothing twice.

PYTHON = /usr/bin/python3
VENV = .venv
RUN = $(VENV)/bin/python
PACKAGES = $(shell sed 's/\#.*//' packages.txt)
DEMO = demo
# mkntfs and its like lie in /usr/sbin, which Debian leaves out of an ordinary user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: setup test test-slow fuzz demo bench clean

setup: $(VENV)/.done

# The bindings of libguestfs, libnbd, hivex and libparted are Debian's, built for Debian's own python3.
$(VENV)/.done: packages.txt pyproject.toml
	@missing=""; for package in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	    sudo=""; [ "$$(id -u)" = 0 ] || sudo="sudo"; \
	    echo "p2v needs these Debian packages; installing:$$missing"; \
	    $$sudo apt-get -q update -o DPkg::Lock::Timeout=600 >/dev/null && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
	        -o DPkg::Lock::Timeout=600 $$missing >/dev/null || exit 1; \
	fi
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check --use-pep517 -e '.[test]'
	@touch $@

test: setup
	$(RUN) -m pytest

test-slow: setup
	$(RUN) -m pytest -m slow

# some minutes; FUZZ=2000 tries more inputs for each target
FUZZ = 300
fuzz: setup
	P2V_FUZZ=$(FUZZ) $(RUN) -m pytest -m fuzz

demo: setup
	@$(RUN) -m fixtures.demo $(DEMO)

# SIZE=2G for larger disks (seven times as much room is needed); what it measured is left in bench/
SIZE = quick
bench: setup
	@mkdir -p bench
	$(RUN) -m benchmarks.copy --size $(SIZE) --json bench/speed.json --plot bench/speed.svg

clean:
	rm -rf $(DEMO) bench build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
