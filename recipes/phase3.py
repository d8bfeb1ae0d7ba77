"""accelerate launch recipes/phase3.py [--recipe RECIPE] [--run-dir DIR | --new] [KEY=VALUE ...]"""

from natix_hf.launch import phase_script

if __name__ == "__main__":
    phase_script(3)
