"""python -m library.options: write all that follows from the declarations: blocks of scripts, docs/parameters*.md."""

from library.options import parameter_block, reference

if __name__ == "__main__":
    parameter_block.write_blocks()
    reference.write_pages()
